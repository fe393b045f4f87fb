"""A model repository checked against its model, plan and gallery before a server starts."""
