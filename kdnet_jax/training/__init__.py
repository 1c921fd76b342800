"""The train step, its loop, and what is saved of it."""
