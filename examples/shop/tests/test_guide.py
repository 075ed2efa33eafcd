"""The test case of the implementation guide, as printed there."""

# tests.py
from django.test import TestCase, Client
from error_logging.models import ErrorLog

class ErrorRecoveryTests(TestCase):
    def setUp(self):
        self.client = Client()
    
    def test_error_recovery(self):
        # Trigger error
        response = self.client.get('/api/bad-endpoint/')
        
        # Should get 500 with recovery info
        self.assertEqual(response.status_code, 500)
        data = response.json()
        
        # Verify error was logged
        error = ErrorLog.objects.get(error_id=data['error']['error_id'])
        self.assertIsNotNone(error)
        
        # Verify recovery was attempted
        self.assertTrue(data['recovery']['attempted'])
