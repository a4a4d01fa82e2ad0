"""A patient's erasure: who may decide it, and how it is carried out."""
