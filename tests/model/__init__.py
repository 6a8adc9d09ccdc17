"""A model of the message protocol, and a checker that visits every state it can reach.

Read `configurations` (what is varied), `states` (what a state is), `store` (the steps), `actions` (who does
what, and what goes wrong), `invariants` (what must hold) and `search` (how states are visited), in this order.
"""
