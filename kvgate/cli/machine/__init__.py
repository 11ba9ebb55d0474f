"""What this machine offers a gateway: free memory and disk, limits, devices, speeds. One file a part of the machine."""
