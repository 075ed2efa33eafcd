from upright.cli import main

main()
