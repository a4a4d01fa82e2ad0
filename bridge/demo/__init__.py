"""A synthetic patient for the demonstration: nobody's images, and the truth is known."""
