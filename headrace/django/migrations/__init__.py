"""Django's migrations of headrace's schema: one for each release that changes it."""
