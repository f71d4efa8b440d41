"""The napari plugin: annotate, learn, propagate and follow suggestions without leaving the viewer.

What is read from layers and written to them is in `layers`, the two ways of computing in `backend` and `remote`, what
happens when in `session`; these know nothing of Qt. `widget` and what it is made of show them.
"""
