"""What a process finds around it: the machine and its devices, disks, databases, credentials, and Ctrl-C."""
