"""Work on a store as a whole: check, dump, restore, migrate. Needs no daemon."""
