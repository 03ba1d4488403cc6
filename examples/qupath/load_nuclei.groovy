// Loads the nuclei of experiment=predict_tiles or predict_slides onto the open image, with the columns of their table.
// Detections that are there are replaced. For QuPath 0.5 and 0.6: Automate > Script editor, set the folder, Run.
def folder = "/path/to/out" // out= of the prediction

def name = GeneralTools.stripExtension(getCurrentImageName())
def first = { List<String> paths -> paths.collect { new File(it) }.find { it.isFile() } }

def outlines = first([
    buildFilePath(folder, "geojson", name + ".geojson"), // of tiles
    buildFilePath(folder, name, name + ".geojson.gz"),   // of slides
])
if (outlines == null)
    throw new FileNotFoundException("There are no nuclei of " + name + " in " + folder)
def nuclei = PathIO.readObjects(outlines)
removeObjects(getDetectionObjects(), true)
addObjects(nuclei)

// Parquet is not read by QuPath; callbacks.writer.table=csv writes the table of a slide as CSV.
def table = first([buildFilePath(folder, "nuclei", name + ".csv"), buildFilePath(folder, name, "nuclei.csv")])
def added = 0
if (table != null) {
    def byNumber = nuclei.collectEntries { [it.getName(), it] }
    def columns = null
    table.eachLine("UTF-8") { line ->
        def cells = line.split(/,(?=(?:[^"]*"[^"]*")*[^"]*$)/, -1) // not at commas in quotation marks
        if (columns == null) {
            columns = cells
            return
        }
        def nucleus = byNumber[cells[columns.findIndexOf { it == "id" }]]
        if (nucleus == null)
            return
        added++
        def measurements = nucleus.getMeasurementList()
        columns.eachWithIndex { column, i ->
            if (column != "id" && cells[i].isDouble())
                measurements.put(column, cells[i].toDouble())
        }
        measurements.close()
    }
}
fireHierarchyUpdate()
println nuclei.size() + " nuclei on " + name + ", " + added + " with the columns of their table"
