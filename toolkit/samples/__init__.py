"""Small real models to rehearse a deployment with, made from what the package registry serves."""
