// Exports the cells and nuclei that QuPath has found on the open image (cell detection, StarDist, InstanSeg, ...) for
// model.segmenters.geojson.path=FOLDER, which scores them. For a project: Run > Run for project. QuPath 0.5 and 0.6.
def folder = "/path/to/nuclei"

def name = GeneralTools.stripExtension(getCurrentImageName())
def nuclei = getDetectionObjects().findAll { !it.isTile() && it.getROI().isArea() }
mkdirs(folder)
exportObjectsToGeoJson(nuclei, buildFilePath(folder, name + ".geojson"), "FEATURE_COLLECTION")
println nuclei.size() + " nuclei of " + name
