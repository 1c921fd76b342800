"""Built datasets of prepared cases."""
