"""What the Helm charts take: values.schema.json, values.yaml and the tables of their READMEs are made from these."""
