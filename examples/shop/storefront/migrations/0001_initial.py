from decimal import Decimal

from django.db import migrations, models

GOODS = [
    ("Field notes", "field-notes", "books", "12.50", 40),
    ("On resilience", "on-resilience", "books", "31.00", 12),
    ("The long repair", "the-long-repair", "books", "18.90", 7),
    ("Spirit level", "spirit-level", "tools", "24.00", 25),
    ("Torque wrench", "torque-wrench", "tools", "89.00", 4),
    ("Roly-poly toy", "roly-poly-toy", "toys", "14.00", 60),
]


def stock(apps, schema_editor):
    product = apps.get_model("storefront", "Product")
    product.objects.bulk_create(
        product(name=name, slug=slug, category=category, price=Decimal(price), stock=count)
        for name, slug, category, price, count in GOODS
    )


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Product",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=80)),
                ("slug", models.SlugField(unique=True)),
                ("category", models.SlugField()),
                ("price", models.DecimalField(decimal_places=2, max_digits=8)),
                ("stock", models.PositiveIntegerField(default=0)),
            ],
            options={"ordering": ["category", "name"]},
        ),
        migrations.RunPython(stock, migrations.RunPython.noop),
    ]
