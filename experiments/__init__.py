"""What people run: ``prefenv compare``, ``train``, ``agents``, ``worlds``."""
