"""A catalog: the names under which a team finds stores and runs."""
