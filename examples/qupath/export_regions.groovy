// Exports the annotations of the open image as data.regions=FOLDER of experiment=predict_slides.
// A class that ends with an asterisk, such as Ignore*, is left out of the prediction. For QuPath 0.5 and 0.6.
def folder = "/path/to/regions"

def name = GeneralTools.stripExtension(getCurrentImageName())
def regions = getAnnotationObjects().findAll { it.getROI().isArea() } // no points, no lines
if (regions.isEmpty())
    throw new IllegalStateException(name + " has no annotation with an area: draw one first")
mkdirs(folder)
exportObjectsToGeoJson(regions, buildFilePath(folder, name + ".geojson"), "FEATURE_COLLECTION")
println regions.size() + " regions of " + name
