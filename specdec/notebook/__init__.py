"""The door for Python: the laboratory with objects in place of options, a function a file."""
