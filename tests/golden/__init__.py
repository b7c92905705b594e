"""What the commands gave before the project was rebuilt, recorded; every later change must give the same.

Everything here goes through the public functions, the command line and files on disk alone. `record.py` says how to
record anew what changes on purpose.
"""
