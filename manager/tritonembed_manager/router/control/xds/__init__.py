"""The port of --xds-port: the servers over xDS, for the user's own Envoy or gRPC clients."""
