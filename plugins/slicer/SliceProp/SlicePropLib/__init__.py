"""What the module SliceProp does, apart from its widget: nothing here needs Qt."""
