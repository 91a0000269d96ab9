"""What is measured: one program each, run in a process of its own; a program prints one JSON object."""
