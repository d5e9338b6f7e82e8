"""Two-way clock estimators beside the references of the field, on the shapes of spec 2b. (In work.)"""
