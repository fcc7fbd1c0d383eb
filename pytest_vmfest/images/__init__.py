"""Image models: the store, what it takes in, and the recipes that it builds from."""
