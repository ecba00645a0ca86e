"""The command lines: flags and help, mistakes and exit statuses, the environment of a process."""
