"""The experiments of the chapters, one module each: they return rows, and chapters draw them."""
