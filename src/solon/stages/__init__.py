"""The stages of the method, one file each, one shape: `run(recipe, inputs, workspace) -> StageResult`."""
