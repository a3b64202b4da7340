"""The control daemon, imported as `pyvxlan.daemon`."""
