//! Images and labels from official layouts, transforms, splits, samplers and the loader.
