"""Plans many nodes behind one router: how many a load needs, what they cost, and when to add one."""
