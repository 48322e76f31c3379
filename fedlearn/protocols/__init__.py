"""Who talks when: synchronous rounds, asynchronous arrivals, coded rounds, gossip."""
