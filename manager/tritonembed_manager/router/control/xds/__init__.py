"""The port of --xds-port: the servers over xDS, for an Envoy or gRPC clients of the user's own."""
