"""The journal over Redis or Valkey: the Lua library of the store, and the forms of its calls."""
