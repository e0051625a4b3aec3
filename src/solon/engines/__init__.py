"""Language models that generate and score, behind one interface."""
