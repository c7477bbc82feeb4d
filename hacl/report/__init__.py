"""Tables, plots and one self-contained HTML page; imports nothing but results."""
