"""Everything that names Ray: router, replicas and front of several instances under Ray Serve."""
