"""How the network lies in memory while it trains: what trains in fp32, what is frozen in less."""
