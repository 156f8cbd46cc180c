"""Who labels."""
