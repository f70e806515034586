"""The items service: what people offer, and the events that say what became of it."""
