"""Image and text transforms, looked up by name: `ProcessorConfig.build`."""
