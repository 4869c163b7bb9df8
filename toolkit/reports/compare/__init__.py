"""Load tests compared with the first one."""
