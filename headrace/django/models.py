"""headrace has no models. Django sends the signal `pre_migrate` for applications alone that have this module."""
