"""Client data: data sets, the heterogeneity levels (partitions) and the client store."""
