"""What a deployment needs and can hold, computed from its YAML before anything is made."""
