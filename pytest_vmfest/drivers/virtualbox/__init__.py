"""The VirtualBox driver, through pyvbox."""
