"""From a deployment's YAML to the files that run it elsewhere: docker compose, Slurm, Kubernetes."""
