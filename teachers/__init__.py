"""3D teacher networks and their sliding-window inference."""
