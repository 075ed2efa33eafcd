"""How well scoring learns, on simulated worlds: no public data set holds the outcomes of recoveries."""
