"""Every setting with its unit and default (`schema`), the recipes (`recipes`), and the command line."""
