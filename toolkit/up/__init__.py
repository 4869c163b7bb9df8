"""`toolkit up`: starts the replicas and the door of a deployment, and restarts what fails."""
